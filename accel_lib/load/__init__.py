"""Put load on a served model, watch it, and vary its settings under the same load."""
