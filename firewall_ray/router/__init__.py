"""The router: an encoder with one logit; sigmoid(logit) is `p_weak`, larger means "send to the weak model".

`model.py` makes it, `data.py` feeds it, `train.py` trains it (`loop.py` on each worker), `card.py` describes it,
`predict.py` uses it, offline and online.
"""
