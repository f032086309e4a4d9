"""`python -m streamdetect`: the `streamdetect` command where its script is not on PATH."""

from streamdetect.cli.entry import main

main()
