"""The stock machine, by its source: the fused path computes what stood in these files when its record was written.

An edit of theirs is one that `ntm/fused/` does not have. Once it does, `python ntm/stock.py` writes the record anew.
"""

import ast
import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "fused" / "stock.json"
FILES = "addressing", "memory", "heads", "controller", "loss", "ntm"  # whose equations ntm/fused/ has once more
DECORATORS = {"property", "staticmethod", "classmethod", "cache"}  # that do nothing to anything else
LOOKED_AT = {"SHIFTS", "CONTROLLERS"}  # NTM.why_not_fused looks at the shifts and the controller that a model has


class Plain(ast.NodeTransformer):
    """Take out of code what computes nothing: docstrings, and strings with values in them, which are messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A statement that is a constant, as a docstring is, does nothing."""
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        """Python's versions write these differently."""
        return ast.Constant("")


def bound(target: ast.expr) -> list[str]:
    """The names that an assignment to a target binds, or changes what they hold, as `Heads` of `Heads.controls`."""
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in bound(part)]
    return [re.match(r"\W*(\w*)", ast.unparse(target))[1]]


def acts(node: ast.stmt) -> bool:
    """Whether a statement may do more than give a name what it says: it calls something, or imports what may do so."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        modules = {
            name.partition(".")[0] for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else names)
        }
        return "*" in names or not modules <= {"torch", *sys.stdlib_module_names}
    if isinstance(node, ast.ClassDef):
        own = [*node.bases, *node.keywords, *(part for part in node.body if not isinstance(part, ast.FunctionDef))]
        if any(isinstance(part, ast.FunctionDef) and acts(part) for part in node.body):
            return True
    elif isinstance(node, ast.FunctionDef):
        own = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    else:
        own = [node]
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        into = [target for target in targets if isinstance(target, ast.Attribute | ast.Subscript)]
        if not {name for target in into for name in bound(target)} <= LOOKED_AT:
            return True
    decorators = {ast.unparse(part) for part in getattr(node, "decorator_list", ())}
    inside = (part for each in own for part in ast.walk(each))
    return not decorators <= DECORATORS or any(isinstance(part, ast.Call | ast.NamedExpr) for part in inside)


class Definition(NamedTuple):
    """What a file says of a name, in all its statements that bind it."""

    code: str = ""
    acts: bool = False

    def and_also(self, node: ast.stmt, code: str | None = None) -> "Definition":
        """The same with one more statement."""
        return Definition(self.code + (code or ast.unparse(node)) + "\n", self.acts or acts(node))


def definitions(source: str) -> dict[str, Definition]:
    """What a file defines by name, as `sharpen`, `NORM_EPSILON` or `Heads.controls`.

    Comments, docstrings, messages and line breaks leave no trace in it. A statement that defines no name is under "".
    """
    found: dict[str, Definition] = {}

    def add(name: str, node: ast.stmt, code: str | None = None) -> None:
        found[name] = found.get(name, Definition()).and_also(node, code)

    for node in Plain().visit(ast.parse(source)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = f"from {'.' * node.level}{node.module or ''} " if isinstance(node, ast.ImportFrom) else ""
                add((alias.asname or alias.name).partition(".")[0], node, f"{module}import {ast.unparse(alias)}")
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            for method in methods:
                add(f"{node.name}.{method.name}", method)
            node.body = [part for part in node.body if part not in methods]
            add(node.name, node)
        elif isinstance(node, ast.FunctionDef):
            add(node.name, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in bound(target):
                    add(name, node)
        else:
            add("", node)
    return {name: each for name, each in found.items() if name not in LOOKED_AT or each.acts}


def digests(found: dict[str, Definition]) -> dict[str, str]:
    """A digest of each definition."""
    return {name: hashlib.sha256(each.code.encode()).hexdigest()[:16] for name, each in found.items()}


def edited_names(source: str, record: dict[str, str]) -> list[str]:
    """The definitions of a file that are not as in its record, or are gone, or new and may change one that is in it."""
    found = definitions(source)
    now, used = digests(found), set(re.findall(r"\w+", " ".join(found[name].code for name in found.keys() & record)))
    new = [name for name in found.keys() - record if not name or found[name].acts or name.partition(".")[0] in used]
    return [name for name in record if now.get(name) != record[name]] + sorted(new)


@cache
def edited() -> str | None:
    """Say in one phrase what was edited in the files that the fused path has once more; None where nothing was."""
    try:
        record = json.loads(RECORD.read_text())
        for file in FILES:
            names = edited_names((FOLDER / f"{file}.py").read_text(), record[file])
            if names:
                what = ", ".join(name or "a statement" for name in names)
                return f"ntm/{file}.py was edited ({what}); once ntm/fused/ has the same edit: python ntm/stock.py"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what it is cannot be read ({error})"
    return None


def main() -> None:
    """Write the record of what the files hold now."""
    before = edited()
    record = {file: digests(definitions((FOLDER / f"{file}.py").read_text())) for file in FILES}
    try:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"{RECORD}: {error.strerror}")
    print(f"{RECORD}: {'nothing was edited' if before is None else before.partition(';')[0]}")


if __name__ == "__main__":
    main()
