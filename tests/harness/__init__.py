"""Private servers for tests: each on free ports, in a directory of its own, as a child of the test process.

Import what you need from its module (``from tests.harness.rabbitmq import PrivateRabbitMQ``). Nothing is
imported here, because ``tests.install_servers`` reads ``binaries`` on machines without any package yet.
"""
