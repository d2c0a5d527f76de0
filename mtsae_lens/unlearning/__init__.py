"""Remove what a model knows by editing features: choose features on SELECT, set the strength on TUNE, and measure once on TEST."""
