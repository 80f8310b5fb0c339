"""Measurements that say what the fleet costs and gains; each is a module to run."""
