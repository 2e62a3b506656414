"""What an agent does when it plays: outcomes with intervals, heatmaps, videos, charts and the report."""
