"""Reinforcement learning from a judge's feedback (report section 3.3).

`environment` trains the judge on preference pairs; `comparison` says what a judge is, `local`, `server`, `function` and
`rules` are judges, `find` finds one by name and `open` by a run's settings; `prompts` are what the policy answers,
`groups` compares the responses to a prompt in a circle, `reward` makes their rewards, term by term, and `scoring`
enters them in what was drawn.
"""
