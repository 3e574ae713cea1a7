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
SHARED = "__init__", "backend", "baseline", "machine", "shards", "state"  # that both paths use: an edit is one of both
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
        modules = names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (FOLDER.name * node.level, node.module)))  # only from beside it: level 0 or 1
            modules = [f"{base}.{name}" for name in names] if base == FOLDER.name else [base]
        return "*" in names or not all(map(only_defines, modules))
    if isinstance(node, ast.ClassDef):
        own = [*node.bases, *node.keywords]
        if any(map(acts, node.body)):
            return True
    elif isinstance(node, ast.FunctionDef):
        own = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    else:
        own = [node]
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        into = {ast.unparse(target) for target in targets if isinstance(target, ast.Attribute | ast.Subscript)}
        if not all(re.match(r"CONTROLLERS\['\w+'\]$", target) for target in into):
            return True
    decorators = {ast.unparse(part) for part in getattr(node, "decorator_list", ())}
    inside = (part for each in own for part in ast.walk(each))
    return not decorators <= DECORATORS or any(isinstance(part, ast.Call | ast.NamedExpr) for part in inside)


@cache
def only_defines(module: str) -> bool:
    """Whether importing a module does no more than define: one of PyTorch, NumPy or Python, or one beside this file."""
    folder, _, name = module.partition(".")
    if folder in {"torch", "numpy", *sys.stdlib_module_names} or (folder == FOLDER.name and name in (*FILES, *SHARED)):
        return True  # an edit of these files is seen there
    try:
        source = (FOLDER / f"{name}.py").read_text()
        return folder == FOLDER.name and not any(each.acts for each in definitions(source).values())
    except (OSError, SyntaxError, ValueError, RecursionError):  # RecursionError: two that import each other
        return False


class Definition(NamedTuple):
    """What a file says of a name, in all its statements that bind it."""

    code: str = ""
    acts: bool = False
    uses: frozenset[str] = frozenset()  # names

    def and_also(self, node: ast.stmt, code: str | None = None) -> "Definition":
        """The same with one more statement."""
        uses = self.uses | {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return Definition(self.code + (code or ast.unparse(node)) + "\n", self.acts or acts(node), uses)


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


def edited_names(source: str, record: dict[str, str], shared: bool = False) -> list[str]:
    """The definitions of a file that are not as in its record, or are gone, or new and may change one that is in it.

    Args:
        shared: whether only those count that may change another file.
    """
    found = definitions(source)
    now, used = digests(found), record.keys() | {each for name in found.keys() & record for each in found[name].uses}
    new = [name for name in found.keys() - record if not name or found[name].acts or name.partition(".")[0] in used]
    names = [name for name in record if now.get(name) != record[name]] + sorted(new)
    return [name for name in names if not shared or (name in found and found[name].acts)]


@cache
def edited() -> str | None:
    """Say in one phrase what was edited in the files that the fused path has once more; None where nothing was."""
    try:
        record = json.loads(RECORD.read_text())
        for file in (*FILES, *SHARED):
            names = edited_names((FOLDER / f"{file}.py").read_text(), record[file], file in SHARED)
            if names:
                what = ", ".join(name or "a statement" for name in names)
                return f"ntm/{file}.py was edited ({what}); once ntm/fused/ computes the same: python ntm/stock.py"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what it is cannot be read from ntm/fused/{RECORD.name} ({error})"
    return None


def main() -> None:
    """Write the record of what the files hold now."""
    before = edited()
    record = {file: digests(definitions((FOLDER / f"{file}.py").read_text())) for file in (*FILES, *SHARED)}
    try:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"{RECORD}: {error.strerror}")
    said = "nothing was edited" if before is None else before.partition(";")[0]
    print(f"{RECORD}: {said}" + "; from now on ntm/fused/ is taken to compute the same" * (before is not None))


if __name__ == "__main__":
    main()
