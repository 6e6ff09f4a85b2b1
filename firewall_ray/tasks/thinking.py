"""What a model thought before it answered is no part of its answer.

A completion goes in, the text outside of its thoughts comes out. Runs before every grader.
"""

import re

# Of DeepSeek-R1, Qwen and most others; of Magistral; of Kimi. One kind may close another: nobody means anything else by it.
_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad)"
_TAG = re.compile(rf"<\s*(?P<slash>/?)\s*{_NAME}\s*>|\[(?P<bracket>/?)THINK\]|◁(?P<triangle>/?)think▷", re.IGNORECASE)


def answer_of(completion: str) -> str:
    """The completion without its thoughts; as it is where it has no tags. Linear in its length.

    A closing tag alone ends a thought that began in the prompt, as chat templates do it. A thought that never ends has no answer
    after it. A tag in quotes is a text that the answer speaks of.

    >>> answer_of("<think>17? No.</think>18"), answer_of("17? No.</think>18"), answer_of("<think>17? No.")
    ('18', '18', '')
    """
    kept: list[str] = []
    start, inside = 0, False
    for tag in _TAG.finditer(completion):
        before, after = completion[tag.start() - 1 : tag.start()], completion[tag.end() : tag.end() + 1]
        if not any(tag.groups()):
            # A tag within a thought opens nothing new: the first one that closes ends it.
            if not inside and before not in ('"', "'", "`"):
                kept.append(completion[start : tag.start()])
                inside = True
        elif inside:
            start, inside = tag.end(), False
        elif after not in ('"', "'"):
            kept.clear()
            start = tag.end()
    if not inside:
        kept.append(completion[start:])
    return "".join(kept)
