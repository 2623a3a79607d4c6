#!lua flags=allow-oom
-- Set a scope's epoch if it is still as the caller saw it and the server is still the one it asked.
--
-- KEYS  1 epoch of the scope, see `enqueue.lua`
-- ARGV  1 the first two words of the value seen ('' for none)  2 new epoch  3 master_replid seen
-- Returns 1 if set, 0 if the caller must read it again.
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local number, given_on = string.match(redis.call('MGET', KEYS[1])[1] or '', '^(%d+) (%S+)')
local ours = number and #number <= 15 and #given_on <= 60 and string.match(given_on, '^[%w_:]+$')
local value = ours and number .. ' ' .. given_on or ''
if replid ~= ARGV[3] or value ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. replid .. ' ')
return 1
