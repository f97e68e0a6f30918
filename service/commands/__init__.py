"""The commands that do not serve: doctor, health, inspect, verify, tune. They do not import engine or http."""
