"""What the installed commands do."""
