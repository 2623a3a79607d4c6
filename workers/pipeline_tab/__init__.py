"""The Pipeline tab of Flower: what the whole deployment does, live, from the record that workers publish."""
