"""What an evaluation found, as text, pages, charts and images."""
