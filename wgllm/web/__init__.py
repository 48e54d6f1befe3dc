"""What runs in a browser: ``runtime.js`` replays plans through ``navigator.gpu``."""
