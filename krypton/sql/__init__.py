"""The language: text to statements (parser.py), statements to text (printer.py), and the nodes between (ast.py).

Nothing here knows a model or an image: the binder makes queries of statements. Imports only `krypton.errors`.
"""

from krypton.sql.parser import expected_after, keywords, parse, parse_script
from krypton.sql.printer import to_sql

__all__ = ["expected_after", "keywords", "parse", "parse_script", "to_sql"]
