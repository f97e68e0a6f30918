"""Draw random sentences from comments, docstrings and docs, for a review of the language: `make sentences SEED=1`.

The same seed and files give the same sentences. Reviewers see each sentence with its file and line.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A sentence ends before a capital, a quote, code, or the name of the next argument. An abbreviation before a capital
# letter ends a sentence too, but this is rare.
END = re.compile(r"(?<=[.!?])(?<!et al\.)\s+(?=[A-Z`'\"*\[(]|\w+(?:, \w+)*: )")
# Comments that only tools read, headings between rules of dashes, and lines that are indented, such as formulas.
NOT_PROSE = re.compile(r"^(noqa|type:|pragma|fmt:|!/|-{3} |  )|-{4}")
# Lines of a docstring that are a command, code, a table with columns, or a diagram.
NOT_TEXT = re.compile(r"^ {4}|^python |\S {2,}\S|-->|[│├└]")
MIN_WORDS = 4

Block = tuple[int, str]  # the number of the block's first line, counted from 1, and the text of the block


def comments(text: str) -> Iterator[Block]:
    """Join consecutive comment lines of a Python file. A comment after code is a separate block."""
    begins, lines, last = 0, [], -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, content = token.start[0], token.string.lstrip("#").removeprefix(" ")
        after_code = bool(token.line[: token.start[1]].strip())
        if line != last + 1 or after_code:
            yield begins, " ".join(lines)
            begins, lines = line, []
        prose = not NOT_PROSE.search(content)
        last = line if prose and not after_code else -1
        if prose:
            lines.append(content)
    yield begins, " ".join(lines)


def hash_comments(text: str) -> Iterator[Block]:
    """Join consecutive full-line comments of a Makefile, a Dockerfile, YAML or TOML."""
    begins, lines = 0, []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        match = re.match(r"\s*#+ ?(.*)", line)
        if match and not NOT_PROSE.search(match[1]):
            begins, lines = (begins, lines) if lines else (number, [])
            lines.append(match[1])
        else:
            yield begins, " ".join(lines)
            lines = []


def docstrings(text: str) -> Iterator[Block]:
    """Split docstrings into paragraphs, without commands, code, tables and diagrams."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                for paragraph in re.split(r"\n\s*\n", docstring):
                    prose = [line for line in paragraph.splitlines() if not NOT_TEXT.search(line)]
                    yield node.body[0].lineno, " ".join(prose)


def paragraphs(text: str) -> Iterator[Block]:
    """Split Markdown into paragraphs and list items, without code, tables, headings, images and comments."""
    begins, lines, fenced = 0, [], False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        prose = bool(line.strip()) and not (fence or fenced or re.match(r"\s*\||    |#|<!--|!\[", line))
        item = re.match(r"\s*(?:[-*]|\d+\.) (?:\[ \] )?", line)
        if lines and (item or not prose):
            yield begins, " ".join(lines)
            lines = []
        if prose:
            begins, lines = (begins, lines) if lines else (number, [])
            lines.append(line[item.end() :] if item else line.strip())


def sentences() -> Iterator[str]:
    """Yield every sentence of the tracked files, as `file:line: sentence`."""
    git = ["git", "ls-files"]
    tracked = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in sorted(tracked):
        path = ROOT / name
        if path.suffix == ".py":
            readers = (comments, docstrings)
        elif path.suffix == ".md":
            readers = (paragraphs,)
        elif path.name in ("Makefile", "Dockerfile", "run") or path.suffix in (".yml", ".yaml", ".toml", ".conf"):
            readers = (hash_comments,)
        else:
            continue
        text = path.read_text(encoding="utf-8")
        for read in readers:
            for line, block in read(text):
                for sentence in END.split(" ".join(block.split())):
                    if len(sentence.split()) >= MIN_WORDS:
                        yield f"{name}:{line}: {sentence}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument("--count", type=int, default=60, help="number of sentences (default: 60)")
    options = parser.parse_args()
    found = list(sentences())
    drawn = random.Random(options.seed).sample(found, options.count)  # noqa: S311 (not for cryptography)
    print(f"{options.count} of {len(found):,} sentences, seed {options.seed}\n")
    for number, sentence in enumerate(drawn, 1):
        print(textwrap.fill(f"{number}. {sentence}", 120, subsequent_indent="    "))


if __name__ == "__main__":
    main()
