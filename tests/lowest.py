"""Prints pip's constraints for the lowest versions that the installed clipskip and its [cpu] allow."""

import re
from importlib.metadata import requires

for requirement in requires("clipskip") or []:
    name, versions, extra = re.fullmatch(r"([\w-]+)(.*?)(?:; extra == \"(.*)\")?", requirement).groups()
    if extra in (None, "cpu"):
        print(name + versions.strip().replace(">=", "=="))
