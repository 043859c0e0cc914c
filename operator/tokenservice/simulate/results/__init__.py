"""The results page: what is run for it, run by run and each kept, and what is written from them.

`study` is the list of what is run, `unit` one run, `keys` what a kept run holds for, `store` where it is kept,
`runner` what is still to be run, `figures` the numbers and `page` the words.
"""
