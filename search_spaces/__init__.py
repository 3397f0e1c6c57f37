"""What can be searched, as plain data: topologies, recipes, their dimensions and closed-form costs. No torch here."""
