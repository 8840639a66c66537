"""The broker on Redis Cluster: sessions in partitions, each of which is a Redis of its own to those above."""
