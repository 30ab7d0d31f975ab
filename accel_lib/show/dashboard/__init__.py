"""The web UI: five tabs over a gateway, shown by Voilà."""
