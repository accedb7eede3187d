"""clipskip over HTTP: `clipskip serve`. Needs the extra `serve`; nothing else of clipskip imports it."""
