"""`nano3 data curate`: pipelines that turn crawled pages, repositories and conversations into training data."""
