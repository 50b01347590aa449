"""The report as one page for a browser: `render` puts together what the other modules find.

A `Card` is one drawing with its title, its text alternative and its data table. Drawings are Vega-Lite
(`charts`), and compiled to Vega for the page; `assets/` holds its template, its style and its script.
"""
