"""The texts of prompts that are token ids, for the router, which reads texts. Runs on ingress replicas."""

import asyncio
from collections.abc import Mapping, Sequence

from serve_app.errors import RequestRefused
from serve_app.models.client import ModelClient

MAX_IDS = 8_192  # of a prompt; more than a router reads


async def texts_of_ids(ids: Sequence[list[int]], models: Mapping[str, ModelClient], timeout_s: float) -> list[str] | None:
    """The text of each prompt, by the models' own tokenizers; None where they can't be known here, or not in time.

    models: by the id that clients know. Both must read the same, since either may be chosen; else raises RequestRefused.
    """
    asked = [model.decode([each[:MAX_IDS] for each in ids]) for model in models.values()]
    try:
        async with asyncio.timeout(timeout_s):
            answers = await asyncio.gather(*asked, return_exceptions=True)
    except TimeoutError:
        return None
    if None in answers:  # of a model elsewhere nobody knows
        return None
    texts = [answer for answer in answers if isinstance(answer, list)]
    if any(each != texts[0] for each in texts):
        message = f"prompt: these token ids are different texts to {' and '.join(models)}. Send the text, or name a model."
        raise RequestRefused(400, message, code="invalid_value", param="prompt")
    return texts[0] if texts else None
