#!lua flags=allow-oom
-- Delete keys that no process of ours has written: of another type, far too large, or without the expiry that ours have.
--
-- KEYS  the keys
-- ARGV  1 whether to delete: 1 or 0  2 bytes or fields that none of ours has  then per key: its type, with a "!" where
--       it expires
-- Returns the names of those that were, or would be, deleted.
local reply, sizes = {}, { string = 'STRLEN', hash = 'HLEN' }
for i, key in ipairs(KEYS) do
  local kind, expires = string.match(ARGV[i + 2], '^(%a+)(!?)$')
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' then
    local ours = found == kind and not (expires == '!' and redis.call('PTTL', key) == -1)
    if ours and sizes[kind] then ours = redis.call(sizes[kind], key) <= tonumber(ARGV[2]) end
    if not ours then
      if ARGV[1] == '1' then redis.call('DEL', key) end
      reply[#reply + 1] = key
    end
  end
end
return reply
