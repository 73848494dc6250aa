from tests.brokers import BrokerConfig
def test_a(): assert BrokerConfig
