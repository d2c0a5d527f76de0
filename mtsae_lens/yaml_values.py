"""Read YAML as people expect it: `1e-3` is a number, a date is text, a key stands once, and nothing is ever constructed but plain values.

PyYAML reads YAML 1.1, where `1e-3` and `1E3` are text, `010` is eight, `1:30` is ninety and a date is an object. The loader here takes
numbers from the core schema of YAML 1.2 (with `1_000` as in Python), and leaves everything else to PyYAML's safe loader.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from mtsae_lens.errors import ConfigError

MAX_BYTES = 1_000_000  # a settings file has a few hundred; what is larger is another file
_MAX_DEPTH = 100
_MAX_NODES = 20_000  # aliases are counted each time: a few lines of them can stand for billions of values
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
        """Build a mapping, and refuse a key that stands twice."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
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
    """Count how deep brackets are nested, those in strings too: PyYAML takes quadratic time over open ones."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def parse_yaml(text: str, place: str) -> Any:
    """Parse a text of YAML into plain values.

    Args:
        text: the YAML.
        place: how an error begins, such as `--config c.yaml:`.

    Raises:
        ConfigError: it is not YAML, or holds what no setting needs: tags of a language, recursion, endless digits.
    """
    if _nesting(text) > _MAX_DEPTH:
        raise ConfigError(f"{place} not YAML (nested too deep)")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{place} not YAML (nested too deep)") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{place} not YAML ({' '.join(str(error).split())[:300]})") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: no such file, not a plain file, too large, not UTF-8, not YAML, or not a mapping with strings as keys.
    """
    place = f"--config {path}:"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(
                f"{place} expected a YAML file, got {'a folder' if stat.S_ISDIR(about.st_mode) else 'a pipe or device'}"
            )
        if about.st_size > MAX_BYTES:
            raise ConfigError(f"{place} expected a YAML file of settings, got {about.st_size:,} bytes; give another file")
        text = path.read_bytes().decode("utf-8-sig")
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} not YAML (not UTF-8 at byte {error.start})") from error
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise ConfigError(f"{place} {getattr(error, 'strerror', None) or error}") from error
    content = parse_yaml(text, place)
    if not isinstance(content, dict):
        raise ConfigError(f"{place} needed a mapping of settings to values, such as 'seed: 1'; got {_kind(content)}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _check_nodes(root: yaml.Node) -> None:
    """Refuse tags of other than plain values, a node that contains itself, and aliases that stand for endless values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if node.tag not in _PLAIN:
            raise yaml.YAMLError(f"the tag {node.tag!r} makes no plain value")
        if key in open_nodes:
            raise yaml.YAMLError("an alias stands inside its own anchor")
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
