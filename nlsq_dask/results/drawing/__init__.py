"""Pictures of a fit, with matplotlib, which is loaded when the first picture is drawn."""
