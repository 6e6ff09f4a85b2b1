"""Answers that say that there is none. They are not right anyway; telling them from wrong ones is for the report."""

import re

_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am|we['’]?re) (?:sorry|afraid|unable|not (?:sure|certain|able|aware))"
    r"|(?:sorry|unfortunately|apologies|as an ai\b[^,.]*),? (?:but )?i\b|sorry\W*$"
    r"|i (?:can['’]?t|can ?not|could ?n['’]?t|am unable to) "
    r"(?:help|answer|assist|provide|determine|find|say|tell|verify|confirm)\b"
    r"|i (?:do ?n['’]?t|do not) (?:know|have|recall|remember)\b|i (?:have no|apologi[sz]e)\b"
    r"|(?:there is |it is )?(?:no answer|not known|unknown|unanswerable|n/a|not applicable)\W*$)",
    re.IGNORECASE,
)


def is_refusal(answer: str) -> bool:
    """Does the answer begin by declining, or say nothing else?

    >>> is_refusal("I'm sorry, but I can't help."), is_refusal("Unknown."), is_refusal("The Unknown Soldier")
    (True, True, False)
    """
    return _REFUSAL.match(answer) is not None
