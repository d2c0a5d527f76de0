"""Read YAML as users expect it: `1e-3` is a number, a date is text, keys are unique, and only plain values are constructed.

PyYAML reads YAML 1.1, where `1e-3` and `1E3` are text, `010` is eight, `1:30` is ninety and a date is an object. The loader here takes
numbers from the core schema of YAML 1.2 (with `1_000` as in Python), and uses PyYAML's safe loader for everything else.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from mtsae_lens.errors import ConfigError

MAX_BYTES = 1_000_000  # a settings file has a few hundred bytes; a larger file is not one
_MAX_DEPTH = 100
_MAX_NODES = 20_000  # every use of an alias is counted, because a few lines of aliases can expand to billions of values
_PLAIN = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")
)
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] not in ("int", "float", "timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and raise an error for a repeated key.

        Args:
            node: the node of the mapping.
            deep: as in PyYAML.
        """
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    base = next((base for prefix, base in (("0x", 16), ("0o", 8)) if text.lstrip("+-").startswith(prefix)), 10)
    return int(text, base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+)\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(?:(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _construct_int)
_Loader.add_constructor(_FLOAT, _construct_float)


def _nesting(text: str) -> int:
    """Count how deeply brackets are nested, in strings too, because PyYAML takes quadratic time for open brackets."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def parse_yaml(text: str, place: str) -> Any:
    """Parse a text of YAML into plain values.

    Args:
        text: the YAML.
        place: beginning of an error message, such as `--config c.yaml:`.

    Raises:
        ConfigError: the text is not YAML, or uses language tags, recursion or very long numbers, which no setting needs.
    """
    if _nesting(text) > _MAX_DEPTH:
        raise ConfigError(f"{place} expected YAML, got brackets or values that are nested too deeply; flatten them")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{place} expected YAML, got brackets or values that are nested too deeply; flatten them") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{place} expected YAML, got an error ({' '.join(str(error).split())[:300]}); mend it") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: the file.

    Returns:
        Values by setting; `-` in a name is replaced by `_`.

    Raises:
        ConfigError: the file does not exist, is not a regular file, is too large, is not UTF-8 or not YAML, or is not a mapping with
            strings as keys.
    """
    place = f"--config {path}:"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(
                f"{place} expected a YAML file, got {'a folder' if stat.S_ISDIR(about.st_mode) else 'a pipe or device'}; give a file"
            )
        if about.st_size > MAX_BYTES:
            raise ConfigError(f"{place} expected a YAML file of settings, got {about.st_size:,} bytes; give another file")
        text = path.read_bytes().decode("utf-8-sig")
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place} expected YAML in UTF-8, got something else at byte {error.start}; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise ConfigError(
            f"{place} expected a readable file, got the error {getattr(error, 'strerror', None) or error}; check its path and permissions"
        ) from error
    content = parse_yaml(text, place)
    if not isinstance(content, dict):
        raise ConfigError(f"{place} expected a mapping of settings to values, got {_kind(content)}; give such as 'seed: 1'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _check_nodes(root: yaml.Node) -> None:
    """Refuse tags of other than plain values, a node that contains itself, and aliases that expand to very many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if node.tag not in _PLAIN:
            raise yaml.YAMLError(f"the tag {node.tag!r} does not stand for a plain value")
        if key in open_nodes:
            raise yaml.YAMLError("an alias is used inside its own anchor")
        if key not in sizes:
            open_nodes.add(key)
            children = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
            flat = [inner for child in children for inner in (child if isinstance(child, tuple) else (child,))]
            sizes[key] = 1 + sum(map(size, flat))
            open_nodes.discard(key)
        if sizes[key] > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES:,} values")
        return sizes[key]

    size(root)
