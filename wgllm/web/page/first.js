// Before anything is drawn: the theme that was chosen. (No module, since those come later.)
try {
    const theme = localStorage.getItem("wgllm.theme");
    if (theme === "light" || theme === "dark") {
        document.documentElement.dataset.theme = theme;
    }
} catch {
    // A browser that keeps nothing: the system's theme.
}
