"""An agent acts for games in any language, over a WebSocket or a Unix socket; see docs/serving.md."""
