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

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "fused" / "stock.json"
FILES = "addressing", "memory", "heads", "controller", "loss", "ntm"  # whose equations ntm/fused/ has once more
LOOKED_AT = {"SHIFTS", "CONTROLLERS"}  # NTM.why_not_fused looks at the shifts and the controller that a model has


class Plain(ast.NodeTransformer):
    """Take out of code what computes nothing: docstrings, and strings with values in them, which are messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A statement that is a constant, as a docstring is, does nothing."""
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        """Python's versions write these differently."""
        return ast.Constant("")


def definitions(source: str) -> dict[str, str]:
    """The code of a file by the name that it defines, as `sharpen`, `SHIFTS` or `Heads.controls`.

    Comments, docstrings, messages and line breaks leave no trace in it. A statement that defines no name is under "".
    """
    found: dict[str, str] = {}

    def add(name: str, node: ast.stmt) -> None:
        found[name] = found.get(name, "") + ast.unparse(node) + "\n"

    for node in Plain().visit(ast.parse(source)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = f"from {'.' * node.level}{node.module or ''}" if isinstance(node, ast.ImportFrom) else ""
                found[(alias.asname or alias.name).partition(".")[0]] = f"{module} import {ast.unparse(alias)}"
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            for method in methods:
                add(f"{node.name}.{method.name}", method)
            node.body = [part for part in node.body if part not in methods]
            add(node.name, node)
        elif isinstance(node, ast.FunctionDef):
            add(node.name, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            add(re.match(r"\w*", ast.unparse(node))[0], node)
        else:
            add("", node)
    return {name: code for name, code in found.items() if name not in LOOKED_AT}


def digests(code: dict[str, str]) -> dict[str, str]:
    """A digest of each definition."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in code.items()}


def edited_names(source: str, record: dict[str, str]) -> list[str]:
    """The definitions of a file that are not as in its record, or are gone, or new and touch one that is in it."""
    code = definitions(source)
    now, used = digests(code), set(re.findall(r"\w+", " ".join(code[name] for name in code.keys() & record)))
    new = [name for name in code.keys() - record if not name or name == "*" or name.partition(".")[0] in used]
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
