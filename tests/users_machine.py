"""The surroundings of a process on a user's machine, where it is not told that it is a CI's."""

import os

ASKED_BY_CI = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "GITLAB_CI", "TRAVIS", "CIRCLECI", "JENKINS_URL", "BUILD_ID")
SILENCED = "ORT_DISABLE_TELEMETRY"
TOLD_BY_TORCH = "TORCHINDUCTOR_CACHE_DIR"  # to the children of whoever imports it, as other tests do


def environment(home: object) -> dict[str, str]:
    """This process's, with `home` for the user's folders: on a CI, nothing is reported anyway."""
    kept = {name: value for name, value in os.environ.items() if name not in (*ASKED_BY_CI, SILENCED, TOLD_BY_TORCH)}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
