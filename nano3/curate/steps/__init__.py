"""Steps of curation pipelines, one a file; nano3.curate.catalog lists them."""
