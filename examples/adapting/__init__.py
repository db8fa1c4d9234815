"""Does it help to adapt step-sizes where nothing leaks? Networks that people have, and ways of adapting them."""
