"""`nano3 rlhf genrm`: the stage (run), its pairs, and the scores of a judge."""
