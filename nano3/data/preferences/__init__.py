"""Preference data for generative reward models: two responses to one prompt, scored and ranked.

`pair` is what every layout becomes, `layouts` reads files, `made` makes pairs of known quality from nano3's own tasks,
`prompt` is the text that a judge is shown. Data layouts are HelpSteer3 (arXiv 2505.11475), HelpSteer2 (arXiv 2406.08673
and 2410.01257) and a plain one.
"""
