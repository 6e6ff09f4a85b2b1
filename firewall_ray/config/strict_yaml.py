"""YAML as this package reads it: a key that comes twice, or that is no text, is refused with its lines.

YAML itself says that a mapping has each key once, but PyYAML keeps the last one in silence (yaml/pyyaml#165). Merge keys (`<<`)
work as ever: what is written beside one overrides what it brings along.
"""

from typing import Any

import yaml

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    # Checked while the document is composed: the loader writes merged keys into the same nodes afterwards.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            # YAML 1.1 reads on, off, yes, no, null and numbers as other than text.
            if key.tag not in (_TEXT, _MERGE):
                said = f"the key {key.value!r}" if isinstance(key, yaml.ScalarNode) else "a key"
                raise yaml.constructor.ConstructorError(
                    None, None, f"{said} is no text to YAML; put it in quotes if it is meant", key.start_mark
                )
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there already, in line {lines[key.value]}; keep one", key.start_mark
                )
            lines[key.value] = line
        return node


def load_yaml(text: str) -> Any:
    """The one document in `text`; None where it is empty. Raises ValueError with line and column, and never quotes the line.

    A quoted line might hold a secret: it is where somebody put a key by mistake that YAML breaks.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as e:
        # Put together from the parts, since str(e) quotes the line.
        mark = e.problem_mark or e.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{', '.join(filter(None, [e.context, e.problem]))}") from None
    except yaml.YAMLError as e:  # a character that YAML does not have; its message has no line
        raise ValueError(f"{e}".partition("\n")[0]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
