"""The report as one page for a browser: `render` puts together what the other modules find.

A `Card` is one drawing with its title, its text alternative and its data table. Drawings are Vega-Lite
(`charts`); `assets/` holds the template, the style and the script of the page.
"""
