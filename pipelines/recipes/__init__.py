"""Built-in recipes: `rwkvfusion prepare NAME` and `rwkvfusion train NAME` find them here."""
