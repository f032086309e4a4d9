"""`python -m streamdetect.cli`, where the `streamdetect` script is not on the path."""

from streamdetect.cli.entry import main

main()
