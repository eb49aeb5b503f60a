"""Reading label folders: EndoVis-VQLA as found in the wild, and other sets by a declarative format."""
