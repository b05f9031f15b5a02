"""What `nano3 rlhf genrm` adds to supervised fine-tuning and GRPO: its pairs, and the scores of a judge."""
