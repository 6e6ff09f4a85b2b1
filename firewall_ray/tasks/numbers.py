"""Which number an answer gives: as people, models and LaTeX write numbers.

A text goes in, its final number comes out, exact. Runs wherever rows are graded.

The final number is the last one that the answer marks as such: ``\\boxed{18}``, ``#### 18``, "the answer is 18". Without a mark, or
where a sum without its result follows it, it is the last number.
"""

from collections import deque
from decimal import Decimal
from fractions import Fraction

import regex

Number = Decimal | Fraction  # a Decimal where a sign, digits, a point and an exponent say it all: long numbers stay exact

MAX_CHARACTERS = 20_000  # of a longer answer the end is read
MAX_MARKS = 20  # the last ones are looked at
_THIN = "\u202f"  # stands for every space that only groups digits

_CHARACTERS = str.maketrans(
    {
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **dict(zip("，．＋％＝：＄’×⋅·", ",.+%=:$'***", strict=True)),
        # An en dash is a minus too where it has no number before it.
        **dict.fromkeys("\u2212\u2013\u2010\u2011\u2012\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2044\u2215\uff0f", "/"),
        **dict.fromkeys("\u00a0\u2007\u2009", _THIN),
        **{
            sign: f" {top}/{bottom}"
            for sign, top, bottom in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True)
        },
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_REWRITES = (
    (regex.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), lambda power: "^" + power.group().translate(_SUPERSCRIPTS)),
    (regex.compile(r"\{,\}"), ","),
    # A lone number in two groups.
    (regex.compile(r"(?<=^\s{0,3}[$€£]?-?[1-9]\d{0,2}) (?=\d{3}\.?\s*$)"), _THIN),
    (regex.compile(r"(?<=\d)(?:\\[,;:! ]|~)(?=\d{3})"), _THIN),
    (regex.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[,;:! ()\[\]]"), " "),
    (regex.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"),
    (regex.compile(r"\\([$%#&])"), r"\1"),
    # Commands for the letters of what they hold.
    (regex.compile(r"\\(?:text|math|mbox|operatorname)[a-z]*\s*\{([^{}\n]*)\}"), r" \1 "),
    (regex.compile(r"(-?)\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1\2/\3 "),
    (regex.compile(r"(-?)\\[dtc]?frac\s*(\d)\s*(\d)"), r" \1\2/\3 "),
    (regex.compile(r"\bnegative\s+(?=[$€£]?\d)|(?<=(?:^|[=:]|\bis|\bis:)\s{0,2})minus\s+(?=[$€£]?\d)", regex.IGNORECASE), "-"),
)

_SIGN = (
    # 3-5 and x-5 are no signs; "= - 5" is one.
    r"(?:(?<![\w)\]}])[-+]|(?<=(?:^|[=:(\[{]|\bis|\bequals)\s{0,2})[-+]\s?)?[$€£¥₹]?\s?(?P<sign>(?<=[$€£¥₹]\s?)-)?"
)
_DIGITS = (
    # 1.234,5 and 1.234.567: points group where a comma, or a second point, says so. 1.234 is a little more than one.
    r"(?:(?P<points>[1-9]\d{0,2}(?:\.\d{3})++,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}+)(?![.,]?\d)"
    # By commas (India's in pairs), apostrophes, underscores, thin spaces; by plain ones where there are two.
    rf"|(?P<groups>[1-9]\d{{0,2}}(?P<by>[,'_{_THIN}])\d{{3}}(?:(?P=by)\d{{3}})*+|[1-9]\d{{0,2}}(?: \d{{3}}){{2,}}+"
    r"|[1-9]\d?(?:,\d\d)+,\d{3})(?!,?\d)(?P<rest>\.\d+)?"
    # 0,125 and 3,5 are decimals; (3,5) and 1,2,3 are lists.
    r"|(?P<comma>0,\d+|(?<![(\[{,])\d+,\d{1,2})(?![\d,)\]}])"
    rf"|(?P<fraction>(?<!/)(?:\d+[ {_THIN}]+)?\d+ ?/ ?0*[1-9]\d*)(?![/\d]|\.\d)"
    r"|(?P<plain>\d+(?:\.\d+)?|(?<!\.)\.\d+))"
)
_EXPONENT = r"(?:[eE](?P<e>[-+]?\d{1,4})(?!\w)|\s*[*x]\s*10\s*(?:\^|\*\*)\s*\{?\s*(?P<ten>[-+]?\d{1,4})\}?)?"
_POWER_OF_TEN = r"(?P<power>10(?:\^|\*\*)\{?(?P<of>[-+]?\d{1,4})\}?(?!\d))"
_BEFORE = r"(?=[-+]?\s?[$€£¥₹]?\s?-?\.?\d)(?<!\d)(?<!\d\.)"  # first a look ahead, which is cheap
# Not the 2 of m^2, s^{-2} or x**2; and not that of m2 or x_2 where there is another number.
_NO_EXPONENT = r"(?<!\^\{?-?)(?<!\w\*\*)"
_OF_NO_NAME = r"(?<![A-Za-z](?:_\{?)?)"
_ANY_NUMBER = regex.compile(f"{_BEFORE}{_NO_EXPONENT}(?P<minus>{_SIGN})(?:{_POWER_OF_TEN}|{_DIGITS}{_EXPONENT})", regex.ASCII)
_NUMBER = regex.compile(f"{_OF_NO_NAME}{_ANY_NUMBER.pattern}", regex.ASCII)

_MARK = regex.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*)|(?P<hashes>####\s*)|"
    r"\banswer(?:\s+to\s+[^.:\n]{1,60}?)?[\s*_]*(?::|=|\b(?:is|was|are|equals|(?:would|should|must|will)\s+be)\b)(?!\s+not\b)[\s*_:]*",
    regex.IGNORECASE,
)
_SENTENCE = regex.compile(r"(?:[^.\n!?]|\.(?=\d)){0,300}")
_OPERATOR = regex.compile(r"\s*(?:[-+*/^]|x(?=\s*\d))\s*[$€£]?\d")


def final_number(text: str) -> Number | None:
    """The number that the text ends up with, see the module; None where it has none.

    >>> final_number("That is 3 x $600, so $1,800."), final_number("The answer is 18, which is 3 more than 15.")
    (Decimal('1800'), Decimal('18'))
    >>> final_number(r"\\boxed{-1\\frac{1}{2}} of the 7")
    Fraction(-3, 2)
    """
    text = _rewritten(text[-MAX_CHARACTERS:])
    for mark in reversed(deque(_MARK.finditer(text), maxlen=MAX_MARKS)):
        result = _marked(text, mark).rpartition("=")[2]
        match = _NUMBER.search(result)
        # "The answer is 3 * 6" says no result yet.
        if match is not None and _OPERATOR.match(result, match.end()) is None:
            return _value(match)
    for pattern in (_NUMBER, _ANY_NUMBER):
        last = deque(pattern.finditer(text), maxlen=1)
        if last:
            return _value(last[0])
    return None


def whole_number(text: str) -> Number | None:
    """The number that is all of a text, or None: for references."""
    match = _NUMBER.fullmatch(_rewritten(text).strip())
    return None if match is None else _value(match)


def same_number(one: Number | None, other: Number | None) -> bool:
    """Equal in value; without a number nothing is."""
    # A fraction equals no decimal to Python, not even one half.
    return one is not None and other is not None and Fraction(one) == Fraction(other)


def _rewritten(text: str) -> str:
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _marked(text: str, mark: regex.Match[str]) -> str:
    """What stands behind a mark: what a box holds, a number behind hashes, the rest of a sentence."""
    if mark["box"] is not None:
        return _braced(text, mark.end())
    # Behind hashes anything but a number is a heading of Markdown.
    pattern = _SENTENCE if mark["hashes"] is None else _NUMBER
    found = pattern.match(text, mark.end())
    return found.group() if found else ""


def _braced(text: str, start: int) -> str:
    """To the brace that closes the one at `start`; to the line's end where none does."""
    depth, line = 0, text[start : start + 300].partition("\n")[0]
    for at, character in enumerate(line):
        depth += (character == "{") - (character == "}")
        if depth <= 0:
            return line[:at].lstrip("{") if at else line
    return line.lstrip("{")


def _value(match: regex.Match[str]) -> Number:
    found = match.groupdict()
    sign = "-" if "-" in found["minus"] else ""
    if found["fraction"]:
        *whole, fraction = found["fraction"].replace(" /", "/").replace("/ ", "/").replace(_THIN, " ").split()
        value = Fraction(fraction) + sum(map(int, whole))
        return -value if sign else value
    if found["power"]:
        return Decimal(f"{sign}1e{found['of']}")
    if found["points"]:
        digits = found["points"].replace(".", "").replace(",", ".")
    elif found["comma"]:
        digits = found["comma"].replace(",", ".")
    else:
        digits = regex.sub(f"[,'_ {_THIN}]", "", found["groups"] or "") + (found["rest"] or "") or found["plain"]
    # One text to the end: arithmetic of decimals rounds.
    return Decimal(f"{sign}{digits}e{found['e'] or found['ten'] or 0}")
