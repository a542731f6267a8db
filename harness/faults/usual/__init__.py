"""What the usual rules of the field would have caught of our planted faults, measured with our own runner.

A rule compares numbers with numbers (`rules`); it is given inputs of three kinds (`inputs`). For each subject the calls and
their truths are prepared once (`preparing`), each fault then meets them in processes of its own (`trial`, `runner`), and
`table` and `drawing` say what came of it.
"""
