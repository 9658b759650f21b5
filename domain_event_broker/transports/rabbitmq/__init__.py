"""RabbitMQ, over pika."""

from domain_event_broker.transports.rabbitmq.transport import RabbitMQTransport

__all__ = ["RabbitMQTransport"]
