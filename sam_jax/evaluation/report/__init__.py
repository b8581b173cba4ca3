"""Reports of an evaluation: text, HTML pages, charts and images."""
