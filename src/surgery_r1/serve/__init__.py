"""``surgery-r1 serve``: a loaded model behind HTTP, and the page that asks it. Nothing that is asked is kept."""
