"""Two Patroni nodes, as far as their consensus store is concerned: the code of
Patroni's own module, against the agent at argv[1]. Prints OK at its end."""
import logging
import sys

import consul
from patroni.dcs.consul import Consul, InvalidSessionTTL

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
host = sys.argv[1]
api = consul.Consul(host=host.split(':')[0], port=int(host.split(':')[1]))


def node(name, **more):
    config = {'scope': 'pg', 'namespace': '/service', 'name': name, 'ttl': 30, 'retry_timeout': 60,
              'loop_wait': 10, 'host': host, 'register_service': True}
    config.update(more)
    return Consul(config)


def data(role):
    return {'role': role, 'state': 'running', 'api_url': 'http://127.0.0.1:8008/patroni',
            'conn_url': 'postgres://127.0.0.1:5432/postgres'}


def check(what, ok):
    if not ok:
        sys.exit('FAILED: ' + what)


a, b = node('a'), node('b')
check('a initializes', a.initialize(sysid='7'))
check('b does not initialize too', not b.initialize(sysid='8'))
check('nobody leads', a.get_cluster().leader is None)
check('a has the leader key', a.attempt_to_acquire_leader())
check('b does not', not b.attempt_to_acquire_leader())
check('a tells its state', a.touch_member(data('master')))
check('b tells its state', b.touch_member(data('replica')))
cluster = b.get_cluster()
check('a leads, as b sees it', cluster.leader.name == 'a' and cluster.leader.session == a._session)
check('both are members', sorted(m.name for m in cluster.members) == ['a', 'b'])
a.get_cluster()
check('a keeps its key', a.update_leader(100))
check('the services are there', sorted(api.agent.services()) == ['pg/a', 'pg/b'])
check('a configuration is kept', a.set_config_value('{"ttl": 30}') and a.set_config_value(
    '{"ttl": 20}', a.get_cluster().config.index))
check('an old configuration is not written', not b.set_config_value('{}', 1))
check('a failover is asked for', a.set_failover_value('{"leader": "a"}'))

# Nothing changes: b waits, and is not woken. Then a gives the key up.
index = b.get_cluster().leader.index
b.watch(None, 0)  # the first watch after a change of the TTL returns at once
check('b is not woken', not b.watch(index, 1))
a.get_cluster()
check('a gives up', a.delete_leader())
check('b is woken at once', b.watch(index, 30))
check('b has the leader key', b.attempt_to_acquire_leader())

# b's session ends behind its back: it must get a new one and the key again.
api.session.destroy(b._session)
check('the key went with the session', b.get_cluster().leader is None)
check('b has the leader key again', b.attempt_to_acquire_leader())
api.session.destroy(b._session)
check('touch_member notices', b.touch_member(data('master')) is False)
check('and then works', b.touch_member(data('master')))

# A TTL that is too small is taken apart by its error, and the smallest is used.
c = node('c', ttl=6)
check('the smallest TTL', c.ttl == 20)
check('it has a session', api.session.info(c._session)[1]['TTL'] == '10s')
print('OK')
